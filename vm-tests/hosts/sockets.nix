# Two servers; one is given a Unix socket and a directory of them, the other none.
{
  networking.nftables.enable = true;
  networking.firewall.enable = false;

  services.opencode = {
    enable = true;
    defaults = {
      environment = {
        OPENCODE_DISABLE_MODELS_FETCH = "1";
        OPENCODE_PURE = "1";
      };
      networkIsolation.enable = true;
    };
    instances = {
      given = {
        directory = "/srv/given";
        listen.port = 4101;
        sandbox.unixSockets.allow = [
          "/run/postgresql/.s.PGSQL.5432"
          "/run/queue"
        ];
      };
      without = {
        directory = "/srv/without";
        listen.port = 4102;
      };
    };
  };
}
