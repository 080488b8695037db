"""Crashes by the thousand on a simulated disk, and faults in our own code that these must find.

`python -m tests.crash.disk_run --count N --seed S` runs the crashes from the root of the repository.

1. `disk`: what a disk may hold after a power loss, and the door to files that writes down what reaches it.
2. `machine`: one life of a machine between two crashes, with the processes on it.
3. `expectation`: what was sent, what was promised, and whether what is found keeps it.
4. `operations`: what processes do; to add one, write a function and name it in `OPERATIONS`.
5. `disk_run`: lives, crashes, recoveries, crashes in the recoveries.
6. `scenarios`: single situations that chance meets too seldom.
7. `mutants`: faults in our own code, each with who must find it and as what.
"""
