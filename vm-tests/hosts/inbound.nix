# Two servers on every address; one is opened, and has a port for its tools.
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
    };
  };
}
