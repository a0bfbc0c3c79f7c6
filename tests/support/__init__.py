"""What the tests share: tiny random pipelines, ranks to run them on, oracles."""
