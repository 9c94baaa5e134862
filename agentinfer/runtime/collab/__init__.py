"""Two engines under one supervisor: started, split the memory between, watched, ended, and served as one."""
