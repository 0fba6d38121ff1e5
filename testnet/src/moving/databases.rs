//! Databases: loaded on X, stopped, started on Y, and asked whether they are whole.

use anyhow::{Result, ensure};

use crate::moving::pair::Pair;

/// `$1` transactions of one row each, every one durable before the next.
const SQLITE_LOAD: &str = "cd /v
    { echo 'PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);'
      for ((n = 1; n <= $1; n++)); do echo \"INSERT INTO t VALUES($n, randomblob(300));\"; done
    } | sqlite3 notes.db";

const SQLITE_LOOK: &str = "cd /v
    sqlite3 notes.db 'PRAGMA integrity_check; SELECT count(*), sum(id), sum(length(body)) FROM t;'
    sqlite3 notes.db 'SELECT id, hex(body) FROM t ORDER BY id;' | sha256sum";

/// A database in WAL mode.
pub(super) fn sqlite(pair: &Pair, transactions: u64) -> Result<String> {
    pair.x.script("sqlite", SQLITE_LOAD, &[&transactions.to_string()])?;
    let wanted = pair.x.script("sqlite", SQLITE_LOOK, &[])?;
    let found = pair.y.script("sqlite", SQLITE_LOOK, &[])?;
    ensure!(found == wanted, "on X it says\n{wanted}\non Y\n{found}");
    let sums =
        format!("ok\n{transactions}|{}|{}\n", transactions * (transactions + 1) / 2, transactions * 300);
    ensure!(found.starts_with(&sums), "the database on Y says\n{found}");
    // It is alive, too.
    let after = pair.y.script(
        "sqlite",
        "sqlite3 /v/notes.db 'INSERT INTO t VALUES(0, 0); SELECT count(*) FROM t;'",
        &[],
    )?;
    ensure!(after == (transactions + 1).to_string(), "after one more row there are {after}");
    Ok(format!("integrity ok, {transactions} committed transactions"))
}

/// Starts a server on the volume; nothing in it depends on the host.
const REDIS: &str = "cd /v; export LC_ALL=C.UTF-8
    start() {
        redis-server --dir /v --port 0 --unixsocket /tmp/s --appendonly yes --appendfsync everysec --save '' \
            --enable-debug-command local --logfile /tmp/log --daemonize yes >/dev/null
        # Also while it loads, it answers.
        until [ \"$(redis-cli -s /tmp/s ping 2>&1)\" = PONG ]; do
            sleep 0.05; [ $((tries += 1)) -lt 600 ] || { cat /tmp/log; exit 1; }
        done
    }
    look() { redis-cli -s /tmp/s dbsize; redis-cli -s /tmp/s debug digest; }
    stop() { redis-cli -s /tmp/s shutdown >/dev/null; while pgrep -x redis-server >/dev/null; do sleep 0.05; done; }
    tries=0";

const REDIS_LOAD: &str = "start
    seq 1 $1 | awk '{ print \"SET key:\" $1 \" value-\" $1 * 7 }' | redis-cli -s /tmp/s --pipe >/dev/null
    redis-benchmark -s /tmp/s -q -t incr,lpush,sadd -n $1 -r $1 -P 16 >/dev/null
    redis-cli -s /tmp/s bgrewriteaof >/dev/null
    until redis-cli -s /tmp/s info persistence | grep -q aof_rewrite_in_progress:0; do sleep 0.05; done
    redis-cli -s /tmp/s set last word >/dev/null
    look; stop";

/// An append-only file that was rewritten once, and appended to since.
pub(super) fn redis(pair: &Pair, keys: u64) -> Result<String> {
    let wanted = pair.x.script("redis", &format!("{REDIS}\n{REDIS_LOAD}"), &[&keys.to_string()])?;
    let look = "start; look; redis-cli -s /tmp/s get last; redis-cli -s /tmp/s get key:7; stop; redis-check-aof \
        /v/appendonlydir/appendonly.aof.manifest | tail -n 1";
    let found = pair.y.script("redis", &format!("{REDIS}\n{look}"), &[])?;
    ensure!(
        found.starts_with(&format!("{wanted}\nword\nvalue-49\n")),
        "on X it says\n{wanted}\non Y\n{found}"
    );
    ensure!(found.contains("valid"), "redis-check-aof says\n{found}");
    let n_keys: u64 = wanted.lines().next().unwrap_or_default().parse()?;
    ensure!(n_keys > keys, "only {n_keys} keys were made");
    Ok(format!("{n_keys} keys, equal digest, log valid"))
}

const POSTGRES: &str = "export LC_ALL=C.UTF-8 PATH=/usr/lib/postgresql/15/bin:$PATH
    as() { su postgres -s /bin/bash -c \"export PATH=$PATH; cd /tmp; $1\"; }
    start() { as 'pg_ctl -s -w -t 60 -D /v/pg -l /tmp/log start' || { cat /tmp/log; exit 1; }; }
    stop() { as 'pg_ctl -s -w -m fast -D /v/pg stop'; }
    look() { as \"psql -AtX\" <<'SQL'
SELECT 'accounts', count(*), sum(abalance) FROM pgbench_accounts;
SELECT 'tellers', count(*), sum(tbalance) FROM pgbench_tellers;
SELECT 'branches', count(*), sum(bbalance) FROM pgbench_branches;
SELECT 'history', count(*), coalesce(sum(delta), 0) FROM pgbench_history;
SELECT 'rows', md5(string_agg(a::text, '' ORDER BY aid)) FROM pgbench_accounts a;
SQL
    }";

const POSTGRES_LOAD: &str = "mkdir -m 700 /v/pg; chown postgres: /v/pg
    as 'initdb -k -E UTF8 -D /v/pg >/dev/null'
    start
    as \"pgbench -i -q -s $1 postgres\" >/dev/null 2>&1
    as \"pgbench -n -c 4 -T $2 postgres\" >/tmp/bench 2>&1 || { cat /tmp/bench; exit 1; }
    look; stop";

/// The server starts without recovery, checksums and amcheck are content, and its sums agree with each other and with X.
const POSTGRES_CHECK: &str = "as 'pg_controldata /v/pg' | grep -q 'cluster state: *shut down$'
    as 'pg_checksums --check -D /v/pg' >/tmp/sums || { cat /tmp/sums; exit 1; }
    start; look
    as 'psql -qX -c \"CREATE EXTENSION amcheck\"'
    as 'pg_amcheck --heapallindexed --parent-check postgres' >/tmp/am 2>&1 || { cat /tmp/am; exit 1; }
    [ ! -s /tmp/am ] || { cat /tmp/am; exit 1; }
    as 'pgbench -n -t 10 postgres' >/dev/null 2>&1
    stop; echo checked";

/// pgbench on X, a clean stop, the same sums on Y.
pub(super) fn postgres(pair: &Pair, scale: u64, seconds: u64) -> Result<String> {
    let load = format!("{POSTGRES}\n{POSTGRES_LOAD}");
    let wanted = pair.x.script("pg", &load, &[&scale.to_string(), &seconds.to_string()])?;
    let found = pair.y.script("pg", &format!("{POSTGRES}\n{POSTGRES_CHECK}"), &[])?;
    ensure!(found == format!("{wanted}\nchecked"), "on X it says\n{wanted}\non Y\n{found}");
    // Every transaction of pgbench adds one amount to all four tables: lost or doubled halves of one show.
    let sums: Vec<&str> = wanted.lines().take(4).filter_map(|line| line.rsplit('|').next()).collect();
    ensure!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]), "the sums do not agree:\n{wanted}");
    let field = |line: usize| wanted.lines().nth(line).and_then(|l| l.split('|').nth(1)).unwrap_or_default();
    ensure!(field(0) == (scale * 100_000).to_string(), "pgbench made {} accounts", field(0));
    let transactions: u64 = field(3).parse()?;
    ensure!(transactions > 0, "pgbench committed nothing");
    Ok(format!("{transactions} transactions in {seconds} s; checksums, amcheck and sums agree"))
}
