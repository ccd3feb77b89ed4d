"""Imported last by the server of :mod:`helpers.processes`: what it has imported stays.

Its processes look for no garbage in it, which would copy all its pages.
"""

import gc

gc.freeze()
