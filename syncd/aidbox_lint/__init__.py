"""The linter against a live Aidbox: do its resources and the vault config fit together?"""
