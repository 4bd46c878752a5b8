"""Imported by a config: the auto-rollback checkpoints stay, as after a kill."""

from amp_hooks.rollback.disk import RollbackFiles

RollbackFiles.clear = lambda self, named: None
