"""The chart on a real cluster: installed, scaled, broken, upgraded and uninstalled.

    python -m tests.cluster                  on the cluster that kubectl reaches: kind, minikube, a real one
    python -m tests.cluster --home-built     on one of this machine's own (`home_built`)

It works in a namespace of its own, which is deleted at the end.
"""
