"""Crashes by the thousand on a simulated disk, and faults in our own code that these must find.

`python -m tests.crash.disk_run --count N --seed S` runs the crashes from the root of the repository.

1. `disk`: what a disk may hold after a power loss, and the door to files that writes down what reaches it.
2. `machine`: one life of a machine between two crashes, with the processes on it.
3. `expectation`: what was sent, what was promised, and whether what is found keeps it.
4. `operations`: what processes do; to add one, write a function and name it in `OPERATIONS`.
5. `disk_run`: lives, crashes, recoveries, crashes in the recoveries.
6. `scenarios`: single situations that chance meets too seldom.
7. `snapshots`, `snapshot_scenarios`: the same with snapshots beside the log, while they are taken and after.
8. `chains`: the command line that `disk_run` and `snapshots` share.
9. `mutants`: faults in our own code, each with who must find it and as what.

And on real ones, each also a command (`python -m tests.crash.kills` and so on):

1. `door`: every system call of the door to files, seen by a hook.
2. `world`, `procedures`: a log with all that must be in it, and what is done to it; to add an operation, write a class
   and name it in `PROCEDURES`.
3. `kills`: a process is killed at each step of each operation, while another has the log open.
4. `power`: an ext4 file system loses its power.
5. `syscalls`, `traced`: system calls fail, one after the other.
"""
