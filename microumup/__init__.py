"""microumup: the u-µP paper as running code that one person can read in an evening.

Read the modules in this order: backend, engine, fp8, ops, multipliers, parametrization, model, optim, data,
checkpoint, train. Each imports only what comes before it.
"""

import os

# Matrices are small here: a second BLAS thread gains a tenth on an idle machine and loses fivefold on a busy one. This
# works because numpy is not imported yet when a command starts, and yields to a setting of your own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
