"""One small state machine per task (pure), its driver, and the local record of what runs here."""
