# What the hosts of the tests have in common.
{
  networking.nftables.enable = true;
  networking.firewall.enable = false;

  services.opencode = {
    enable = true;
    defaults.environment = {
      OPENCODE_DISABLE_MODELS_FETCH = "1";
      OPENCODE_PURE = "1";
    };
  };
}
