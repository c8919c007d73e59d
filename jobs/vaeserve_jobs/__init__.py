"""Batch scoring of files: in process, or through a server."""

from vaeserve_jobs.score import Summary, score_file

__all__ = ["Summary", "score_file"]
