/* What only memory mappings and record locks can ask of a file system: a rig's second process. Exits with 0 if all is as POSIX says. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L

static void die(const char *what) {
	fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "not as it should be");
	exit(1);
}

static void need(int holds, const char *what) {
	if (!holds)
		die(what);
}

static int open_file(const char *path) {
	int fd = open(path, O_RDWR);
	need(fd >= 0, "open");
	return fd;
}

/* Maps a range of a file; *start is what the range begins with. */
static char *map_range(int fd, long offset, long len, int flags, char **start) {
	long begin = offset / PAGE * PAGE;
	char *map = mmap(NULL, len + offset - begin, PROT_READ | PROT_WRITE, flags, fd, begin);
	need(map != MAP_FAILED, "mmap");
	*start = map + (offset - begin);
	return map;
}

static void store(const char *path, long offset, long len, int byte) {
	char *start;
	int fd = open_file(path);
	map_range(fd, offset, len, MAP_SHARED, &start);
	memset(start, byte, len);
}

static void load(const char *path, long offset, long len) {
	char *start;
	int fd = open_file(path);
	map_range(fd, offset, len, MAP_SHARED, &start);
	need(fwrite(start, 1, len, stdout) == (size_t)len && fflush(stdout) == 0, "print");
}

static void shared(const char *path) {
	char *map, *other, byte = 'w';
	int fd = open_file(path), status;
	need(ftruncate(fd, 2 * PAGE) == 0, "truncate");
	map_range(fd, 0, 2 * PAGE, MAP_SHARED, &map);
	map_range(fd, 0, 2 * PAGE, MAP_SHARED, &other);
	need(pwrite(fd, &byte, 1, 10) == 1 && map[10] == 'w', "a write is seen through a mapping");
	map[PAGE + 5] = 'm';
	need(pread(fd, &byte, 1, PAGE + 5) == 1 && byte == 'm', "a store is seen by read");
	need(other[PAGE + 5] == 'm', "a store is seen through the other mapping");
	if (fork() == 0) {
		other[20] = 'c';
		_exit(0);
	}
	need(wait(&status) > 0 && status == 0 && map[20] == 'c', "a store of another process is seen");
	need(msync(map, 2 * PAGE, MS_SYNC) == 0, "msync");
	need(pread(fd, &byte, 1, 20) == 1 && byte == 'c', "a store is in the file after msync");
}

static void private(const char *path) {
	char *map, byte = 'a';
	int fd = open_file(path);
	need(ftruncate(fd, 0) == 0 && pwrite(fd, &byte, 1, 0) == 1, "write");
	map_range(fd, 0, 1, MAP_PRIVATE, &map);
	*map = 'b';
	need(pread(fd, &byte, 1, 0) == 1 && byte == 'a', "a private store stays private");
}

/* Whether a range can be locked for writing; F_SETLK belongs to the process, F_OFD_SETLK to the open file. */
static int lock(int fd, int command, short type, long from, long len) {
	struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = len};
	return fcntl(fd, command, &range) == 0;
}

static void record_locks(const char *path) {
	int status, fd = open_file(path);
	need(lock(fd, F_SETLK, F_WRLCK, 0, 100), "lock");
	if (fork() == 0) {
		int theirs = open_file(path);
		int is_kept_out = !lock(theirs, F_SETLK, F_WRLCK, 50, 10) && (errno == EAGAIN || errno == EACCES);
		_exit(!(is_kept_out && lock(theirs, F_SETLK, F_WRLCK, 100, 10)));
	}
	need(wait(&status) > 0 && status == 0, "another process is kept out of the range and of no other");
	close(open_file(path));
	errno = 0;
	if (fork() == 0)
		_exit(!lock(open_file(path), F_SETLK, F_WRLCK, 50, 10));
	need(wait(&status) > 0 && status == 0, "a close by the process ends its locks");
}

static void ofd_locks(const char *path) {
	int one = open_file(path), two = open_file(path);
	need(lock(one, F_OFD_SETLK, F_WRLCK, 0, 100), "lock");
	need(!lock(two, F_OFD_SETLK, F_WRLCK, 50, 10) && errno == EAGAIN, "the other open file is kept out");
	errno = 0;
	close(open_file(path));
	need(!lock(two, F_OFD_SETLK, F_WRLCK, 50, 10), "a close of another open file ends nothing");
	close(one);
	need(lock(two, F_OFD_SETLK, F_WRLCK, 50, 10), "its own close does");
}

int main(int n, char **args) {
	const char *what = n > 2 ? args[1] : "";
	if (n == 6 && !strcmp(what, "store"))
		store(args[2], atol(args[3]), atol(args[4]), atoi(args[5]));
	else if (n == 5 && !strcmp(what, "load"))
		load(args[2], atol(args[3]), atol(args[4]));
	else if (!strcmp(what, "shared"))
		shared(args[2]);
	else if (!strcmp(what, "private"))
		private(args[2]);
	else if (!strcmp(what, "record-locks"))
		record_locks(args[2]);
	else if (!strcmp(what, "ofd-locks"))
		ofd_locks(args[2]);
	else
		return 2;
	return 0;
}
