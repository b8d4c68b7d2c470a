# Servers on every address of one family and of both, some opened, and one where the module puts it by default. The first has a port
# for its tools.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults.networkIsolation.enable = true;
    instances = {
      opened = {
        directory = "/srv/opened";
        listen = {
          address = "0.0.0.0";
          port = 4101;
          extraPorts = [ 5173 ];
        };
        openFirewall = true;
      };
      closed = {
        directory = "/srv/closed";
        listen = {
          address = "0.0.0.0";
          port = 4102;
        };
      };
      opened6 = {
        directory = "/srv/opened6";
        listen = {
          address = "::";
          port = 4103;
        };
        openFirewall = true;
      };
      closed6 = {
        directory = "/srv/closed6";
        listen = {
          address = "::";
          port = 4104;
        };
      };
      local = {
        directory = "/srv/local";
        listen.port = 4105;
      };
    };
  };
}
