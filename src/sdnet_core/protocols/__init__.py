"""Who may speak which protocol: handlers (`handler`), the registry (`registry`) and the gate (`dispatch`)."""
