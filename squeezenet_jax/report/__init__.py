"""From finished runs to a comparison that can be believed: numbers (`comparison`), words, files, figures, page."""

from squeezenet_jax.report.comparison import Comparison, Estimate, Row, Run, compare
from squeezenet_jax.report.files import print_table, write
from squeezenet_jax.report.statistics.paired import Delta, paired_delta

__all__ = ["Comparison", "Delta", "Estimate", "Row", "Run", "compare", "paired_delta", "print_table", "write"]
