# Becomes the program in ARGV[1..], for which every system call numbered in ARGV[0] succeeds and does nothing.
# Arguments: numbers of system calls: prctl, seccomp, then those to be made nothing (separated by commas); the program.
use strict;
my ($prctl, $seccomp, @nothing) = split /,/, shift @ARGV;
# A classic BPF program over struct seccomp_data, whose first word is the number of the call.
my $filter = pack("SCCL", 0x20, 0, 0, 0);
# One comparison and one "answer errno 0" each, then "allow".
$filter .= pack("SCCL", 0x15, 0, 1, $_) . pack("SCCL", 0x06, 0, 0, 0x00050000) for @nothing;
$filter .= pack("SCCL", 0x06, 0, 0, 0x7fff0000);
my $program = pack("S x6 P", length($filter) / 8, $filter);
syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!\n";
syscall($seccomp, 1, 0, $program) == 0 or die "seccomp: $!\n";
exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!\n";
