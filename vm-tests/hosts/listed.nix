# The server of `open`, isolated.
{
  imports = [ ./open.nix ];

  services.opencode.instances.a.networkIsolation = {
    enable = true;
    outboundAllowCidrs = [ "192.0.2.10/32" ];
  };
}
