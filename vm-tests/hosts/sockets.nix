# Two servers; one is given a Unix socket and a directory of them, the other none.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults.networkIsolation.enable = true;
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
