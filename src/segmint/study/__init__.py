"""Which strategy is worth it on this data: strategies x budgets x seeds, run, compared and told."""
