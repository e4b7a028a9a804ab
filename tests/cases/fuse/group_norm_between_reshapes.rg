// pass: fuse
symbol B
symbol H
weight @g : f32[8, 1, 1] role=param = random(1)
weight @b : f32[8, 1, 1] role=param = random(2)

graph(%x : f32[B, 8, H, 4]) {
  %g = weight @g
  %b = weight @b
  %one = literal f32[2] [1, 1]
  %zero = literal f32[2] [0, 0]
  %r = reshape(%x) {shape = [B, 2, 16*H]}
  %i = instance_norm(%r, %one, %zero) {epsilon = 1e-06}
  %k = reshape(%i) {shape = [B, 8, H, 4]}
  %s = mul(%k, %g)
  %y = add(%s, %b)
  return %y
}

// ----
module "model"
symbol B
symbol H
weight @g : f32[8, 1, 1] role=param = random(1)
weight @b : f32[8, 1, 1] role=param = random(2)

graph(%x : f32[B, 8, H, 4]) {
  %g = weight @g
  %b = weight @b
  %0 = reshape(%g) {shape = [8]} : f32[8]
  %1 = reshape(%b) {shape = [8]} : f32[8]
  %y = group_norm(%x, %0, %1) {groups = 2, epsilon = 1e-06} : f32[B, 8, H, 4]
  return %y
}
