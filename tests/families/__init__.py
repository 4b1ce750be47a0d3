"""What every family's tests provide: official files, hand-made group tables, small random configs."""
