"""The debugger as a full-screen view: the monitor's commands, and panes of what they are about.

session.py and render.py know nothing of the terminal; app.py, widgets.py and help.py are built on textual.
"""
