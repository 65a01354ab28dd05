"""The policy as a torch module: packing, attention, masks, NLL of tokens. Knows neither log nor steps."""
