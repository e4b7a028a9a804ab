// pass: fuse
symbol B
symbol S
weight @g : f32[16] role=param = random(1)
weight @b : f32[16] role=param = random(2)

graph(%x : f32[B, S, 16]) {
  %g = weight @g
  %b = weight @b
  %eps = literal f32[] 1e-05
  %root = literal f32[] 1.4142135
  %one = literal f32[] 1
  %half = literal f32[] 0.5
  %m = reduce_mean(%x) {axes = [2]}
  %c = sub(%x, %m)
  %q = mul(%c, %c)
  %v = reduce_mean(%q) {axes = [2]}
  %e = add(%v, %eps)
  %d = sqrt(%e)
  %n = div(%c, %d)
  %s = mul(%n, %g)
  %t = add(%s, %b)
  %u = div(%t, %root)
  %w = erf(%u)
  %k = add(%w, %one)
  %p = mul(%t, %k)
  %y = mul(%p, %half)
  return %y
}

// ----
module "model"
symbol B
symbol S
weight @g : f32[16] role=param = random(1)
weight @b : f32[16] role=param = random(2)

graph(%x : f32[B, S, 16]) {
  %g = weight @g
  %b = weight @b
  %t = layer_norm(%x, %g, %b) : f32[B, S, 16]
  %y = gelu(%t) : f32[B, S, 16]
  return %y
}
