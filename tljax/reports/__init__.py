"""From records to tables, pictures and pages. This room never imports jax, so that a report takes a second."""
