// pass: fuse
symbol B
symbol H

graph(%x : f32[B, 8, H]) {
  %eps = literal f32[] 1e-06
  %m = reduce_mean(%x) {axes = [1]}
  %c = sub(%x, %m)
  %q = mul(%c, %c)
  %v = reduce_mean(%q) {axes = [1]}
  %e = add(%v, %eps)
  %d = sqrt(%e)
  %y = div(%c, %d)
  return %y
}
