"""llama.cpp's own HTTP server, run by the Python of `make llama-cpp-tools`: GGUF PORT."""

import signal
import sys

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.port = int(sys.argv[2])
parameters.n_ctx = 2048
parameters.n_parallel = 4
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
signal.pause()
