# The server of `open`, isolated by another list than in `listed`.
{
  imports = [ ./open.nix ];

  services.opencode.instances.a.networkIsolation = {
    enable = true;
    outboundAllowCidrs = [ "192.0.2.20/32" ];
  };
}
