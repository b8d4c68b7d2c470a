# The server of `told` with another list.
{
  imports = [ ./told.nix ];

  services.opencode.instances.a.networkIsolation.outboundAllowNames = [ "added.example.org" ];
}
