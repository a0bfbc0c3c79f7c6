"""What a run did: records, times, figures."""
