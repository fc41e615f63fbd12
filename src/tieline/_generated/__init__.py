"""Code made by ``make proto`` from the .proto files here; edit those."""
