//! Random choices of which none is forgotten, also in a short run.

/// Cards that are dealt in random order, all of them before one comes again.
pub(super) struct Deck<T> {
    cards: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    pub fn new(cards: &[T]) -> Self {
        Self {
            cards: cards.to_vec(),
            left: Vec::new(),
        }
    }

    pub fn deal(&mut self, random: &mut fastrand::Rng) -> T {
        if self.left.is_empty() {
            self.left = self.cards.clone();
            random.shuffle(&mut self.left);
        }
        self.left.pop().unwrap()
    }
}
