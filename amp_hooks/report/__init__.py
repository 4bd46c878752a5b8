"""Explain a run from the files it left: ``amp-hooks report WORK_DIR``.

``read`` makes plain data of a work_dir (``history.py``); ``judge`` and ``show`` are
pure functions over that data: what happened (``incidents.py``), how it ended
(``status.py``), what it points at (``causes.py``), what to change (``advise.py``), and
the two pages (``terminal.py``, ``html_page.py``). Neither torch nor mmengine is
imported, but to read a checkpoint.
"""
