"""What guards the way to a key: who may ask for it, how often an owner may try, and connecting without pasting one."""
