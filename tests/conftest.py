"""What several folders of tests share."""

from tests.live.slurm_lab import running_slurm_lab  # noqa: F401 - the fixture slurm_lab: one for the whole run
