"""Use of trained methods: prediction and generation."""
