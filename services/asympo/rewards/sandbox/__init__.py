"""Runs programs that a model wrote: Landlock and seccomp shut them in, without root or any other program."""
