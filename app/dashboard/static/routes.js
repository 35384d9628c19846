// Every screen: its name in the address, and the module that shows it. `takesId` tells #/jobs/ID from #/jobs.

export const NAVIGATION = [
  { path: "jobs", title: "Jobs", scope: "jobs:read" },
  { path: "new", title: "New job", scope: "jobs:write" },
  { path: "datasets", title: "Datasets", scope: "files:read" },
  { path: "models", title: "Models", scope: "models:read" },
  { path: "critics", title: "Critics", scope: "critics:read" },
  { path: "compare", title: "Compare", scope: "jobs:read" },
  { path: "verify", title: "Verify" },
  { path: "approvals", title: "Approvals", scope: "jobs:read" },
  { path: "admin", title: "Admin" },
];

export const SCREENS = [
  { name: "jobs", title: "Jobs", load: () => import("./screens/jobs.js") },
  { name: "jobs", takesId: true, title: "Job", load: () => import("./screens/job.js") },
  { name: "new", title: "New job", load: () => import("./screens/new_job.js") },
  { name: "datasets", title: "Datasets", load: () => import("./screens/datasets.js") },
  { name: "datasets", takesId: true, title: "Dataset", load: () => import("./screens/dataset.js") },
  { name: "models", title: "Models", load: () => import("./screens/models.js") },
  { name: "models", takesId: true, title: "Model", load: () => import("./screens/model.js") },
  { name: "critics", title: "Critics", load: () => import("./screens/critics.js") },
  { name: "critics", takesId: true, title: "Critic", load: () => import("./screens/critic.js") },
  { name: "compare", title: "Compare jobs", load: () => import("./screens/compare.js") },
  { name: "verify", title: "Verify", load: () => import("./screens/verify.js") },
  { name: "approvals", title: "Approvals", load: () => import("./screens/approvals.js") },
  { name: "admin", title: "Admin", load: () => import("./screens/admin.js") },
];
