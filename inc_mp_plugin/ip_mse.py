"""For INC scripts: `import inc_mp_plugin.ip_mse` makes the strategy `ip_mse` known to INC."""

from inc_mp_plugin.strategy.entry import register

register()
