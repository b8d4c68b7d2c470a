# One server without isolation.
{
  networking.nftables.enable = true;
  networking.firewall.enable = false;

  services.opencode = {
    enable = true;
    instances.a = {
      directory = "/srv/a";
      listen.port = 4101;
      environment = {
        OPENCODE_DISABLE_MODELS_FETCH = "1";
        OPENCODE_PURE = "1";
      };
    };
  };
}
