"""jaxdiff on one GPU: is it right, how fast is it, does it learn; one call, one JSON line per measurement.

    python -m benchmarks.gpu --plan short --minutes 9 --data cifar10.npz --folder DIR     # all of it, in order of value
    python -m benchmarks.gpu --plan short --smoke --folder DIR                            # the rehearsal, on a CPU
    python -m benchmarks.gpu --plan levers --networks dit-xl/2 --minutes 9 --folder DIR   # ways to compute the step

``plan`` has the stages, their shares of the time and the processes they start; ``work`` is one such process, and
``right``, ``speed`` and ``learn`` are what it does; ``cases`` and ``reference`` are what it does it with.
"""
