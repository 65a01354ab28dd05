"""Runs the pods that the chart renders as processes of this machine, without a container engine.

    python -m tests.pods

Each container's own command, arguments, environment, mounted files, probes and stop behaviour are honoured
(`pod.py`, `probes.py`); every pod has a loopback address of its own, so that ports stay those of the chart.
"""
