"""What comes from elsewhere: bounded before it is parsed, plain before it is shown."""
