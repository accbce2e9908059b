"""The few blocks that models share; each fast form has its plain `*_reference` beside it."""
