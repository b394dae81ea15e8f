from recbole.config.configurator import Config as Config
