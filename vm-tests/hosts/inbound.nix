# Two servers on every address; one is opened, and has a port for its tools.
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
