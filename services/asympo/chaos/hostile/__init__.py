"""`asympo chaos --mode hostile`: garbage through every door of a run, which goes on."""
