"""What runs on a remote device: the bytes of the protocol, a supervisor, a disposable worker, and the spool.

Python 3.8 or later and its standard library; the runtime's own package is needed by the worker alone.
"""
