"""Turn a step's pieces into update outputs by stage, and read back what a training computed."""
