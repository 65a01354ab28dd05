#!/bin/sh
# Only the pod of the first rank answers: the others live as long as their torchrun does.
case $POD_NAME in *-0) ;; *) exit 0 ;; esac
exec python -c 'import sys, urllib.request as r; r.urlopen("http://127.0.0.1:8080" + sys.argv[1], timeout=8)' "$1"
